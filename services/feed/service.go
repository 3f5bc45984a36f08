// Package feed is the service that owns posts. It has no projection and no queries: a post reaches the users who are
// subscribed to the post or to its author.
package feed

import (
	"context"
	"embed"
	"io/fs"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/services/feed/post"
	"github.com/edumatrix/interlinked/shared/owner"
	"github.com/edumatrix/interlinked/shared/process"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Needs are the stores that feed uses.
var Needs = process.Needs{Postgres: true, Kafka: true}

// Run serves until ctx ends.
func Run(ctx context.Context, env process.Env) error {
	changes, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	s, err := owner.Open(ctx, env, changes)
	if err != nil {
		return err
	}
	s.HandleCommands("post", func(stream string) owner.State { return post.New(stream) })
	s.AuthorizeSubscribe(authorize)
	return s.Run(ctx)
}

// authorize lets every user subscribe to every author and post, because all posts are public. It returns no snapshots,
// because new posts arrive as events.
func authorize(_ context.Context, subscriptions []*meshv1.Subscription) ([]*meshv1.Authorization, error) {
	authorizations := make([]*meshv1.Authorization, len(subscriptions))
	for i := range authorizations {
		authorizations[i] = &meshv1.Authorization{Allowed: true}
	}
	return authorizations, nil
}
