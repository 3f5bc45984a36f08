-- Removes, from the hash of unpublished changes, the users whose newest change is published. A user whose state has
-- changed again since then stays in the hash.
-- KEYS: the hash of unpublished changes, from the user to the number of the newest change
-- ARGV: user, number of the published change, and so on for further users
for i = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then redis.call('HDEL', KEYS[1], ARGV[i]) end
end
return 0
