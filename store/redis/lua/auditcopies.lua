-- repair (0, 1), user -> counted, what the counter says
local user, k = ARGV[2], 0
for _, rid in ipairs(call('ZRANGE', P .. 'u:' .. user, 0, -1)) do
  local id, n = string.match(rid, '^(.-):(%d+)$')
  local raw = id and call('HGET', P .. 'm:' .. id, n)
  local good, r = pcall(unpack_, raw or '')
  if raw and good and type(r) == 'table' and r[USER] == user and is_counted_copy(r) then k = k + 1 end
end
local c = tonumber(call('GET', P .. 'c:' .. user) or 0)
if ARGV[1] == '1' and c ~= k then
  if k == 0 then call('DEL', P .. 'c:' .. user) else call('SET', P .. 'c:' .. user, k) end
end
return { k, c }
