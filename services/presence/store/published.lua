-- Takes users out of the dirty set whose newest change is published; one that changed again meanwhile stays.
-- KEYS: dirty
-- ARGV: user, number, user, number …
for i = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then redis.call('HDEL', KEYS[1], ARGV[i]) end
end
return 0
