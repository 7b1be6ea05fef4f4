-- number -> OK
forget(tonumber(ARGV[1]))
return 'OK'
