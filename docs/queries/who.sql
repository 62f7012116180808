-- Who used this address and port at this time? :since and :until are the time less and plus a tolerance (vestigo takes 2 s).
-- Every row is a candidate: two tenants may use one private address. Without a payload only the VM is certain.
SELECT f.host, f.domain, f.instance, f.vo, f.quality, f.payload, p.pilot, p.payload_id, p.user,
       count(*) AS flows, min(f.first) AS since, max(f.last) AS until
FROM flows f LEFT JOIN payloads p ON p.host = f.host AND p.domain = f.domain AND p.payload = f.payload
WHERE f.first <= :until AND f.last >= :since
  AND ( -- the VM's side of the flow
       (f.direction = 'outgoing' AND f.orig_ip = :ip AND f.orig_port = :port)
    OR (f.direction = 'incoming' AND f.resp_ip = :ip AND f.resp_port = :port AND f.proto NOT IN (1, 58))
        -- or what the world saw in its place
    OR (f.nat_ip = :ip AND f.nat_port = :port)
        -- or perhaps one of many that were folded into one record
    OR (f.direction = 'outgoing' AND f.orig_ip = :ip AND :port BETWEEN f.orig_port AND f.folded_last_port)
    OR (f.direction = 'incoming' AND f.resp_ip = :ip AND :port BETWEEN f.resp_port AND f.folded_last_port))
GROUP BY f.host, f.domain, f.instance, f.vo, f.quality, f.payload, p.pilot, p.payload_id, p.user
ORDER BY f.host, f.domain, f.payload
