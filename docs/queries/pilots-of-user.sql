-- Which pilots ran payloads of this user, given by the pseudonyms that `vestigo keys` computes (one for each VO and month)?
SELECT p.pilot, p.host, p.domain, p.payload, p.payload_id, p.vo_claimed, p.trust, p.received, p.end_received
FROM payloads p
WHERE p.user IN (:users) AND p.holder = 'payload'
  AND p.received <= :until AND (p.end_received IS NULL OR p.end_received >= :since)
ORDER BY p.host, p.domain, p.received
