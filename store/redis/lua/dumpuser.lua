-- keys -> for each: user (as user.lua gives it; empty: in no table), history (newest first)
local out = {}
for i, user in ipairs(ARGV) do
  local u, one = get_user(user), {}
  if u then
    local batch = u[U_BATCH] ~= 0 and call('HGET', P .. 'I', string.format('%d', u[U_BATCH])) or ''
    one = { u[U_EPOCH], u[U_GEN], u[U_WAY], u[U_COPIES], u[U_SINCE], u[U_STATE], u[U_KIND], get_extra(user, u), batch }
  end
  out[i] = { one, call('LRANGE', P .. 'h:' .. user, 0, -1) }
end
return out
