-- id, t0, limit, envelope, size, chunks, inline, n, then user and hint of each
-- recipient -> OK | DUP | STALE | FULL
--
-- t0 is Redis time in ms of the first try, 0: this is the first. A repeated
-- put is recognised for as long as finished ids are kept.
local id, t0, limit, size = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[5])
if t0 > 0 and NOW - t0 > 60000 then return { 'STALE', NOW } end
if limit > 0 and tonumber(call('HGET', P .. 's', 'bytes') or 0) + size > limit then
  if call('EXISTS', P .. 'm:' .. id) == 0 then return { 'FULL', NOW } end
end
if put_message(id, ARGV[4], size, ARGV[6], ARGV[7], 9, tonumber(ARGV[8])) then return { 'OK', NOW } end
return { 'DUP', NOW }
