-- mark -> OK
--
-- The copy is whole: nodes may come.
local mark = call('GET', P .. 'loading')
if not mark then return 'OK' end -- of a call before that had no answer
if mark ~= ARGV[1] then return redis.error_reply('IMPORT the copy was discarded by another') end
call('DEL', P .. 'loading')
return 'OK'
