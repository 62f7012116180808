-- ClickHouse (server, clickhouse-local or chDB) 25 or newer. :ledger is the folder; for S3 write s3('https://…', …) instead of file(…).
CREATE VIEW flows AS SELECT * FROM file(':ledger/date=*/host=*/*-flows.parquet', Parquet);
CREATE VIEW instances AS SELECT * FROM file(':ledger/date=*/host=*/*-instances.parquet', Parquet);
CREATE VIEW coverage AS SELECT * FROM file(':ledger/date=*/host=*/*-coverage.parquet', Parquet);
CREATE VIEW events AS SELECT * FROM file(':ledger/date=*/host=*/*-events.parquet', Parquet);
CREATE VIEW payload_records AS
  SELECT *, concat(JSONExtractRaw(record, 'received'), JSONExtractRaw(record, 'claimed'), JSONExtractRaw(record, 'claim')) AS said
  FROM file(':ledger/date=*/host=*/*-payloads.parquet', Parquet);
-- The first claim under a run id holds, with the first end it was given; what differs from it is a contradiction, and stays
-- in payload_records.
CREATE VIEW payloads AS SELECT * FROM (
  SELECT *, first_value(said) OVER (PARTITION BY host, domain, payload ORDER BY recorded, received) AS said_first,
         row_number() OVER (PARTITION BY host, domain, payload, said ORDER BY end_received IS NULL, recorded) AS place
  FROM payload_records)
WHERE said = said_first AND place = 1;
