-- Removes users whose newest change is published from the hash of unpublished changes. A user whose state has changed
-- again since then stays.
-- KEYS: dirty
-- ARGV: user, number of the published change, and so on for further users
for i = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then redis.call('HDEL', KEYS[1], ARGV[i]) end
end
return 0
