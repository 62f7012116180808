-- What could not be seen? Without a domain a row speaks of every VM of the host. What no statement speaks of is not in here:
-- vestigo names that, too ("gaps").
SELECT DISTINCT c.host, c.domain, c.tap, c.state, c.detail, c.lost, c.start AS since, c.end AS until
FROM coverage c
WHERE c.state IN ('lost', 'not-capturable', 'nat-lost', 'nat-unseen') AND c.start <= :until AND c.end >= :since
ORDER BY c.host, since
