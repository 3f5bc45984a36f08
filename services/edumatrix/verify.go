package edumatrix

import (
	"context"
	"errors"
	"strings"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/config"
	"github.com/edumatrix/interlinked/shared/process"
)

// verify checks the connections to all stores. If the environment does not contain the address of a store, verify uses
// the address from the mesh that runs in the data directory or, without such a mesh, the default address.
func verify(ctx context.Context, t Terminal, args []string) error {
	if err := parse(flags("verify", t), args); err != nil {
		return err
	}
	_ = process.NewLog(t.Err)
	c, err := config.Load(config.AllInOne, t.Getenv)
	if err != nil {
		return err
	}
	if mesh, err := findMesh(t.Getenv); err == nil {
		if !c.Given["postgres"] {
			c.Postgres.URL = mesh.DatabaseURL
		}
		if !c.Given["redis"] {
			c.Redis = backend.Redis{URL: mesh.RedisURL}
		}
		if !c.Given["kafka"] {
			c.Kafka.Brokers, c.Kafka.TopicPrefix = mesh.Brokers, mesh.TopicPrefix
		}
	}
	declared, err := catalog.Load()
	if err != nil {
		return err
	}
	results := backend.Verify{Postgres: c.Postgres, Redis: c.Redis, Kafka: c.Kafka, Topics: declared.Topics("")}.Run(ctx)
	backend.Print(t.Out, results)
	if backend.Passed(results) {
		return nil
	}
	var failed []string
	for _, r := range results {
		if !r.OK {
			failed = append(failed, r.Store+" "+r.Check)
		}
	}
	return errors.New("failed: " + strings.Join(failed, ", "))
}
