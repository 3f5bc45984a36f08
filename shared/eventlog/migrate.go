package eventlog

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"
	"log/slog"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"github.com/edumatrix/interlinked/shared/advisory"
)

//go:embed migrations/*.sql
var migrations embed.FS

// lockKey returns the key of the advisory lock for one purpose of one owner. The key does not depend on the database,
// because databases do not share advisory locks.
func lockKey(owner, purpose string) int64 {
	return advisory.Key("eventlog/" + owner + "/" + purpose)
}

// migrate brings the schema up to date, one instance at a time. It uses connections of its own, because the search_path
// that goose needs must not remain set on a pooled connection.
func migrate(ctx context.Context, o Options) (err error) {
	c := o.Pool.Config().ConnConfig
	lock, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		return fmt.Errorf("connect to migrate: %w", Unavailable(err))
	}
	defer lock.Close(context.WithoutCancel(ctx))
	if err := advisory.Await(ctx, lock, lockKey(o.Owner, "migrate"), lockPollInterval); err != nil {
		return fmt.Errorf("lock to migrate: %w", Unavailable(err))
	}
	schema := pgx.Identifier{o.Owner}.Sanitize()
	if _, err := lock.Exec(ctx, "CREATE SCHEMA IF NOT EXISTS "+schema); err != nil {
		return fmt.Errorf("create schema %s: %w", o.Owner, err)
	}
	c.RuntimeParams["search_path"] = schema
	db := stdlib.OpenDB(*c)
	defer db.Close()
	own, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	if err := migrateUp(ctx, db, own, o.Owner+".log_migrations", o.Log); err != nil {
		return fmt.Errorf("migrate the log: %w", err)
	}
	if o.Migrations == nil {
		return nil
	}
	if err := migrateUp(ctx, db, o.Migrations, o.Owner+".owner_migrations", o.Log); err != nil {
		return fmt.Errorf("migrate the owner's tables: %w", err)
	}
	return nil
}

// MigrateInto runs the owner's migrations in another schema, which has to exist. The migrations must not name a schema.
func (l *Log) MigrateInto(ctx context.Context, schema string) error {
	c := l.o.Pool.Config().ConnConfig
	c.RuntimeParams["search_path"] = pgx.Identifier{schema}.Sanitize()
	db := stdlib.OpenDB(*c)
	defer db.Close()
	return migrateUp(ctx, db, l.o.Migrations, schema+".owner_migrations", l.o.Log)
}

func migrateUp(ctx context.Context, db *sql.DB, files fs.FS, table string, log *slog.Logger) error {
	p, err := goose.NewProvider(goose.DialectPostgres, db, files, goose.WithTableName(table),
		goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return err
	}
	done, err := p.Up(ctx)
	for _, d := range done {
		log.Info("migrated", "table", table, "version", d.Source.Version, "took", d.Duration)
	}
	return err
}
