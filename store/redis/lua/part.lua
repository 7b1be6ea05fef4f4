-- node, boot, token ... -> OK
--
-- A node leaves: its leases go back as if nothing had been claimed.
local N_BOOT, N_INFO, N_BEAT, N_SINCE, N_DRAIN, N_LEFT = 1, 2, 3, 4, 5, 6
for i = 3, #ARGV do
  local l = get_lease(ARGV[i])
  if l then take_back(ARGV[i], l) end
end
local raw = call('HGET', P .. 'n', ARGV[1])
local r = raw and unpack_(raw)
if r and r[N_BOOT] == ARGV[2] then
  r[N_LEFT] = NOW
  call('HSET', P .. 'n', ARGV[1], pack(r))
end
return 'OK'
