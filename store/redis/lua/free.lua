-- n -> users on whom there is work and whom nobody owns: those who are held
-- first, and up to n of each state
local key, n, seen, by, out = P .. 'O', tonumber(ARGV[1]), {}, {}, {}
local function take(list)
  for _, user in ipairs(list) do
    if not seen[user] then
      seen[user] = true
      local u = get_user(user)
      local state = u and u[U_STATE] or ''
      by[state] = by[state] or {}
      if #by[state] < n then table.insert(by[state], user) end
    end
  end
end
-- From both ends, so that many who wait hide nobody whose node has just died.
take(call('ZREVRANGEBYSCORE', key, NOW, '-inf', 'LIMIT', 0, 1000))
take(call('ZRANGEBYSCORE', key, '-inf', NOW, 'LIMIT', 0, 1000))
for _, held in ipairs({ 'cutover', 'rollback' }) do
  for _, user in ipairs(by[held] or {}) do out[#out + 1] = user end
  by[held] = nil
end
for _, list in pairs(by) do
  for _, user in ipairs(list) do out[#out + 1] = user end
end
return out
