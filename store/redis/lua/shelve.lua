-- number of the block, SHA-256 of the one before, number of its last line, its own SHA-256, head with index, payload
-- -> OK | BEHIND
local n, prev, last, sum = tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4]
local have = call('HMGET', P .. 'j', 'n', 'sum')
if have[2] == sum then return 'OK' end -- a repeated call
if tonumber(have[1] or 0) ~= n - 1 or (have[2] or prev) ~= prev then return 'BEHIND' end
call('SET', P .. 'jh:' .. ARGV[1], ARGV[5])
call('SET', P .. 'jp:' .. ARGV[1], ARGV[6])
call('HSET', P .. 'j', 'n', ARGV[1], 'last', last, 'sum', sum)
if call('HEXISTS', P .. 'j', 'first') == 0 then call('HSET', P .. 'j', 'first', ARGV[1]) end
forget(tonumber(last))
return 'OK'
