-- token ... -> how many leases were given back as if nothing had been claimed
local k = 0
for _, token in ipairs(ARGV) do
  local l = get_lease(token)
  if l then
    take_back(token, l)
    k = k + 1
  end
end
return k
