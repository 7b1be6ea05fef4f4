-- number of a block -> OK
--
-- Removes the oldest block, when it is that one and not the newest.
local have = call('HMGET', P .. 'j', 'first', 'n')
if have[1] == ARGV[1] and have[2] ~= ARGV[1] then
  call('DEL', P .. 'jh:' .. ARGV[1], P .. 'jp:' .. ARGV[1])
  call('HSET', P .. 'j', 'first', string.format('%d', tonumber(ARGV[1]) + 1))
end
return 'OK'
