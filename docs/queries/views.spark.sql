-- Spark 4. Times have microseconds there: nanoseconds are read as numbers (spark.sql.legacy.parquet.nanosAsLong) and cut.
-- Set spark.sql.session.timeZone to UTC. :ledger is the folder, hdfs://… or s3a://….
SET spark.sql.legacy.parquet.nanosAsLong = true;
SET spark.sql.session.timeZone = UTC;
CREATE TEMPORARY VIEW flow_files USING parquet OPTIONS (path ':ledger', pathGlobFilter '*-flows.parquet', basePath ':ledger', mergeSchema 'true');
CREATE TEMPORARY VIEW instance_files USING parquet OPTIONS (path ':ledger', pathGlobFilter '*-instances.parquet', basePath ':ledger', mergeSchema 'true');
CREATE TEMPORARY VIEW payload_files USING parquet OPTIONS (path ':ledger', pathGlobFilter '*-payloads.parquet', basePath ':ledger', mergeSchema 'true');
CREATE TEMPORARY VIEW coverage_files USING parquet OPTIONS (path ':ledger', pathGlobFilter '*-coverage.parquet', basePath ':ledger', mergeSchema 'true');
CREATE TEMPORARY VIEW event_files USING parquet OPTIONS (path ':ledger', pathGlobFilter '*-events.parquet', basePath ':ledger', mergeSchema 'true');
CREATE TEMPORARY VIEW flows AS
  SELECT * EXCEPT (first, last), timestamp_micros(first DIV 1000) AS first, timestamp_micros(last DIV 1000) AS last FROM flow_files;
CREATE TEMPORARY VIEW instances AS
  SELECT * EXCEPT (start, end), timestamp_micros(start DIV 1000) AS start, timestamp_micros(end DIV 1000) AS end FROM instance_files;
CREATE TEMPORARY VIEW coverage AS
  SELECT * EXCEPT (start, end), timestamp_micros(start DIV 1000) AS start, timestamp_micros(end DIV 1000) AS end FROM coverage_files;
CREATE TEMPORARY VIEW events AS
  SELECT * EXCEPT (time), timestamp_micros(time DIV 1000) AS time FROM event_files;
CREATE TEMPORARY VIEW payload_records AS
  SELECT * EXCEPT (received, claimed, end_received, end_claimed),
         timestamp_micros(received DIV 1000) AS received, timestamp_micros(claimed DIV 1000) AS claimed,
         timestamp_micros(end_received DIV 1000) AS end_received, timestamp_micros(end_claimed DIV 1000) AS end_claimed,
         concat(get_json_object(record, '$.received'), get_json_object(record, '$.claimed'), get_json_object(record, '$.claim')) AS said
  FROM payload_files;
-- The first claim under a run id holds, with the first end it was given; what differs from it is a contradiction, and stays
-- in payload_records.
CREATE TEMPORARY VIEW payloads AS SELECT * FROM (
  SELECT *, first_value(said) OVER (PARTITION BY host, domain, payload ORDER BY recorded, received) AS said_first,
         row_number() OVER (PARTITION BY host, domain, payload, said ORDER BY end_received IS NULL, recorded) AS place
  FROM payload_records)
WHERE said = said_first AND place = 1;
