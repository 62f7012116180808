-- Which addresses did the VMs of this VO send from? The VO is the tenant's (a host fact), not what a guest claims.
SELECT v.ip, v.host, v.domain, v.instance, count(*) AS flows, sum(v.bytes) AS bytes, min(v.first) AS since, max(v.last) AS until
FROM (
  SELECT CASE WHEN f.direction = 'outgoing' THEN f.orig_ip ELSE f.resp_ip END AS ip,
         CASE WHEN f.direction = 'outgoing' THEN f.orig_packets ELSE f.resp_packets END AS sent,
         f.orig_bytes + f.resp_bytes AS bytes, f.host, f.domain, f.instance, f.first, f.last
  FROM flows f
  WHERE f.vo = :vo AND f.first <= :until AND f.last >= :since AND f.tunnel IS NULL
) v
WHERE v.sent > 0 AND v.ip NOT IN ('0.0.0.0', '::')
GROUP BY v.ip, v.host, v.domain, v.instance
ORDER BY v.ip, v.host, v.domain
