-- user, or '' for all -> of each: user, owner or '', how often he was asked
-- about, data or ''
local out = {}
local function add(user, data)
  local owner = ''
  if tonumber(call('ZSCORE', P .. 'O', user) or 0) > NOW then owner = call('HGET', P .. 'o', user) or '' end
  out[#out + 1] = { user, owner, tonumber(call('HGET', P .. 'oa', user) or 0), data or '' }
end
if ARGV[1] ~= '' then
  local data = call('HGET', P .. 'st', ARGV[1])
  if data or call('ZSCORE', P .. 'O', ARGV[1]) then add(ARGV[1], data) end
  return out
end
local all, seen = call('HGETALL', P .. 'st'), {}
for i = 1, #all, 2 do
  seen[all[i]] = true
  add(all[i], all[i + 1])
end
for _, user in ipairs(call('ZRANGE', P .. 'O', 0, -1)) do
  if not seen[user] then add(user) end
end
return out
