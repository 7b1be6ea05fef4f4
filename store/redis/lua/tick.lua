-- what nobody asked for: leases that ran out, mail that follows its user
-- -> 1 when there is more to do at once
local n = reap(50)
local m = advance(200)
call('ZREMRANGEBYSCORE', P .. 'T', '-inf', NOW - 120000)
return (n == 50 or m > 0) and 1 or 0
