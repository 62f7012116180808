-- DuckDB 1.4 or newer. :ledger is the folder, or s3://bucket/prefix (INSTALL httpfs; CREATE SECRET …).
SET TimeZone = 'UTC';
CREATE VIEW flows AS SELECT * FROM read_parquet(':ledger/date=*/host=*/*-flows.parquet', union_by_name = true);
CREATE VIEW instances AS SELECT * FROM read_parquet(':ledger/date=*/host=*/*-instances.parquet', union_by_name = true);
CREATE VIEW coverage AS SELECT * FROM read_parquet(':ledger/date=*/host=*/*-coverage.parquet', union_by_name = true);
CREATE VIEW events AS SELECT * FROM read_parquet(':ledger/date=*/host=*/*-events.parquet', union_by_name = true);
CREATE VIEW payload_records AS
  SELECT *, json_extract(record, ['$.received', '$.claimed', '$.claim'])::VARCHAR AS said
  FROM read_parquet(':ledger/date=*/host=*/*-payloads.parquet', union_by_name = true);
-- The first claim under a run id holds, with the first end it was given; what differs from it is a contradiction, and stays
-- in payload_records.
CREATE VIEW payloads AS SELECT * FROM payload_records
  QUALIFY said = first_value(said) OVER (PARTITION BY host, domain, payload ORDER BY recorded, received)
      AND row_number() OVER (PARTITION BY host, domain, payload, said ORDER BY end_received IS NULL, recorded) = 1;
