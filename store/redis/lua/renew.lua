-- token, ttl, sending -> OK | LOST
local l = get_lease(ARGV[1])
if not l or l[L_UNTIL] <= NOW then return 'LOST' end
l[L_UNTIL] = NOW + tonumber(ARGV[2])
if ARGV[3] == '1' and l[L_SENDING] == 0 then l[L_SENDING], l[L_SENT] = 1, NOW end
put_lease(ARGV[1], l)
return 'OK'
