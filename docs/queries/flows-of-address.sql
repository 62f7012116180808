-- What did this address do, on whichever side? By VM; records of packets inside tunnels are counted with the tunnel's own flow.
SELECT f.host, f.domain, f.instance, f.vo, count(*) AS flows, sum(f.orig_bytes + f.resp_bytes) AS bytes,
       min(f.first) AS since, max(f.last) AS until
FROM flows f
WHERE (f.orig_ip = :ip OR f.resp_ip = :ip OR f.nat_ip = :ip) AND f.tunnel IS NULL
GROUP BY f.host, f.domain, f.instance, f.vo
ORDER BY f.host, f.domain
