-- user -> how many deliveries may still reach a mailbox under an older epoch,
-- and how many copies are still to be delivered
return busy(ARGV[1]) + tonumber(call('GET', P .. 'c:' .. ARGV[1]) or 0)
