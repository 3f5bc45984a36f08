package store

import "context"

// ExpireSome ends some connections of a gateway, and returns the result of expire.lua.
func (s *Store) ExpireSome(ctx context.Context, gateway string) (int, error) {
	return s.expire.Run(ctx, s.redis, s.keys(gateway), gateway).Int()
}
