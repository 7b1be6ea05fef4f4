-- boot, lanes for which it has workers waiting, id, t0, limit, envelope, size, chunks, inline, n, then user and hint of
-- each recipient, line of the journal -> OK | DUP | STALE | FULL, now, the lanes that were filled
--
-- t0 is Redis time in ms of the first try, 0: this is the first. A repeated
-- put is recognised for as long as finished ids are kept. STALE too when it was
-- taken back meanwhile.
ME = ARGV[1]
for lane in string.gmatch(ARGV[2], '%d') do rung[tonumber(lane)] = true end
local id, t0, limit, size = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[7])
if t0 > 0 and NOW - t0 > 60000 or call('ZSCORE', P .. 'T', '!' .. id) then return { 'STALE', NOW } end
if limit > 0 and tonumber(call('HGET', P .. 's', 'bytes') or 0) + size > limit then
  if call('EXISTS', P .. 'm:' .. id) == 0 and not call('ZSCORE', P .. 'T', id) then return { 'FULL', NOW } end
end
if put_message(id, ARGV[6], size, ARGV[8], ARGV[9], 11, tonumber(ARGV[10]), ARGV[#ARGV]) then return with_filled({ 'OK', NOW }) end
return { 'DUP', NOW }
