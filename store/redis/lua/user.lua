-- users -> for each: nil | epoch, gen, way, copies, since, state, kind, extra,
-- the bulk import that made him
local out = {}
for i, user in ipairs(ARGV) do
  local u = get_user(user)
  if u then
    local batch = u[U_BATCH] ~= 0 and call('HGET', P .. 'I', u[U_BATCH]) or ''
    out[i] = { u[U_EPOCH], u[U_GEN], u[U_WAY], u[U_COPIES], u[U_SINCE], u[U_STATE], u[U_KIND], get_extra(user, u), batch }
  else
    out[i] = false
  end
end
return out
