-- asked (0, 1), user ... -> OK
--
-- There is work on these users; asked: an operator wants something new, which
-- an owner has to look at.
for i = 2, #ARGV do
  call('ZADD', P .. 'O', 'NX', NOW, ARGV[i])
  if ARGV[1] == '1' then call('HINCRBY', P .. 'oa', ARGV[i], 1) end
end
return 'OK'
