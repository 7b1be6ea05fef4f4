-- key, then field, what it says, what it should say -> OK | CHANGED
local key = P .. ARGV[1]
for i = 2, #ARGV, 3 do
  if (call('HGET', key, ARGV[i]) or '0') ~= ARGV[i + 1] then return 'CHANGED' end
end
for i = 2, #ARGV, 3 do
  if ARGV[i + 2] == '0' then call('HDEL', key, ARGV[i]) else call('HSET', key, ARGV[i], ARGV[i + 2]) end
end
return 'OK'
