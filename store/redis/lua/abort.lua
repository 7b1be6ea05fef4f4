-- id, n, line of the journal -> GONE | KEPT
--
-- Takes a put back whose outcome was not known and that was answered 451. Once
-- a recipient was touched it stays. T then has the id with a ! before it: a
-- repeated put must not take what was taken back for what was delivered.
local id, count = ARGV[1], tonumber(ARGV[2])
local m = P .. 'm:' .. id
if call('EXISTS', m) == 0 then
  if call('ZSCORE', P .. 'T', '!' .. id) then return 'GONE' end
  if call('ZSCORE', P .. 'T', id) then return 'KEPT' end
  call('ZADD', P .. 'T', NOW, id, NOW, '!' .. id) -- so that a late put of it is no message either
  return 'GONE'
end
if call('HLEN', m) ~= count + 2 then return 'KEPT' end
local rows = {}
for n = 0, count - 1 do
  local r = get_row(id, n)
  if not r or r[LANE] == LEASED or r[ATTEMPTS] > 0 or r[CRASHES] > 0 or r[COPY] == 1 then return 'KEPT' end
  rows[n] = r
end
note(ARGV[3])
for n = 0, count - 1 do remove(id, n, rows[n]) end
call('ZADD', P .. 'T', NOW, '!' .. id)
return 'GONE'
