// Package store holds the data that queries about conversations read: the list of each user's conversations, and their
// messages. It is a projection of chat's log and contains nothing else.
package store

import (
	"embed"
	"io/fs"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migrations returns the migrations that create the tables.
func Migrations() fs.FS {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // the folder is compiled in
	}
	return files
}

// MaxPageBytes is about the maximum size of the texts in a page. A larger page is cut, and reports that there is more.
// The page's JSON can be several times as large, but stays below what one connection may hold.
const MaxPageBytes = 512 << 10

// Store reads the rows that the projection wrote. Its statements name the schema, because its connections have no
// search_path. The projection's statements name no schema, because a rebuild runs them in another one.
type Store struct{ pool *pgxpool.Pool }

// New returns a Store that reads from a pool.
func New(pool *pgxpool.Pool) *Store { return &Store{pool} }

// planned makes the server plan a statement for its arguments each time it runs. A cached plan would be reused for all
// arguments and for tables that have grown.
const planned = pgx.QueryExecModeCacheDescribe
