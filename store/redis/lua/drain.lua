-- node, who drains it or '' (no longer drained) -> OK | NONE | LEFT
--
-- It is told at once, and looks by itself at its next beat.
local N_BOOT, N_INFO, N_BEAT, N_SINCE, N_DRAIN, N_LEFT = 1, 2, 3, 4, 5, 6
local raw = call('HGET', P .. 'n', ARGV[1])
if not raw then return 'NONE' end
local r = unpack_(raw)
if r[N_LEFT] ~= 0 then return 'LEFT' end
r[N_DRAIN] = ARGV[2]
call('HSET', P .. 'n', ARGV[1], pack(r))
call('PUBLISH', P .. 'bell', 'nodes')
return 'OK'
