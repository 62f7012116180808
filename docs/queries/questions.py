# SPDX-License-Identifier: Apache-2.0
"""The standard questions over a ledger with pyarrow alone (no SQL): each is a function of the folder and its parameters."""

import json
import pathlib

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds


def table(ledger, kind, columns, where=None):
    """The rows of one table; columns of files older than a column are null. Words are read as plain text."""
    files = [str(path) for path in sorted(pathlib.Path(ledger).glob(f"date=*/host=*/*-{kind}.parquet"))]
    schema = ds.dataset(files).schema
    plain = pa.schema([(f.name, pa.string() if pa.types.is_dictionary(f.type) else f.type) for f in schema])
    return ds.dataset(files, schema=plain).to_table(columns=columns, filter=where)


def during(since, until):
    """Of flows: those that share an instant with the stretch."""
    return (ds.field("first") <= until) & (ds.field("last") >= since)


def payloads(ledger):
    """Payloads by host, VM and run: the first claim holds, with the first end that it was given. Times are nanoseconds."""
    names = ["host", "domain", "payload", "pilot", "payload_id", "user", "vo_claimed", "trust", "holder", "record"]
    times = ["received", "end_received", "recorded"]
    columns = {name: ds.field(name) for name in names} | {name: ds.field(name).cast(pa.int64()) for name in times}
    first, held = {}, {}
    for row in sorted(table(ledger, "payloads", columns).to_pylist(), key=lambda row: (row["recorded"], row["received"])):
        key = (row["host"], row["domain"], row["payload"])
        record = json.loads(row.pop("record"))
        said = [record["received"], record["claimed"], record["claim"]]
        if said == first.setdefault(key, said) and (key not in held or held[key]["end_received"] is None):
            held[key] = row
    return held


def who(ledger, ip, port, since, until):
    vm = (((ds.field("direction") == "outgoing") & (ds.field("orig_ip") == ip) & (ds.field("orig_port") == port))
          | ((ds.field("direction") == "incoming") & (ds.field("resp_ip") == ip) & (ds.field("resp_port") == port)
             & ~ds.field("proto").isin([1, 58]))
          | ((ds.field("nat_ip") == ip) & (ds.field("nat_port") == port)))
    columns = ["host", "domain", "instance", "vo", "quality", "payload", "first"]
    found = table(ledger, "flows", columns, during(since, until) & vm)
    keys = columns[:-1]
    rows = found.group_by(keys).aggregate([("first", "count")]).rename_columns(keys + ["flows"]).to_pylist()
    known = payloads(ledger) if any(row["payload"] for row in rows) else {}
    for row in rows:
        payload = known.get((row["host"], row["domain"], row["payload"]), {})
        row.update({name: payload.get(name) for name in ("pilot", "payload_id", "user")})
    return rows


def flows_of_address(ledger, ip):
    where = ((ds.field("orig_ip") == ip) | (ds.field("resp_ip") == ip) | (ds.field("nat_ip") == ip)) & ds.field("tunnel").is_null()
    columns = {name: ds.field(name) for name in ("host", "domain", "instance", "vo")}
    columns["bytes"] = ds.field("orig_bytes") + ds.field("resp_bytes")
    return summed(table(ledger, "flows", columns, where), ["host", "domain", "instance", "vo"])


def pilots_of_user(ledger, users, since, until):
    ran = (row for row in payloads(ledger).values() if row["user"] in users and row["holder"] == "payload")
    return [row for row in ran
            if row["received"] <= until.value and (row["end_received"] is None or row["end_received"] >= since.value)]


def addresses_of_vo(ledger, vo, since, until):
    outgoing = pc.equal(ds.field("direction"), "outgoing")
    columns = {name: ds.field(name) for name in ("host", "domain", "instance")}
    columns["ip"] = pc.if_else(outgoing, ds.field("orig_ip"), ds.field("resp_ip"))
    columns["sent"] = pc.if_else(outgoing, ds.field("orig_packets"), ds.field("resp_packets"))
    columns["bytes"] = ds.field("orig_bytes") + ds.field("resp_bytes")
    where = (ds.field("vo") == vo) & during(since, until) & ds.field("tunnel").is_null()
    found = table(ledger, "flows", columns, where)
    found = found.filter((pc.field("sent") > 0) & ~pc.field("ip").isin(["0.0.0.0", "::"]))
    return summed(found, ["ip", "host", "domain", "instance"])


def coverage_gaps(ledger, since, until):
    lost = ds.field("state").isin(["lost", "not-capturable", "nat-lost", "nat-unseen"])
    columns = {"host": ds.field("host"), "domain": ds.field("domain"), "state": ds.field("state"),
               "detail": ds.field("detail"), "since": ds.field("start"), "until": ds.field("end")}
    return table(ledger, "coverage", columns, lost & (ds.field("start") <= until) & (ds.field("end") >= since)).to_pylist()


def summed(found, keys):
    sums = found.group_by(keys).aggregate([("bytes", "count"), ("bytes", "sum")])
    return sums.rename_columns(keys + ["flows", "bytes"]).to_pylist()
