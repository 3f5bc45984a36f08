// Package store has the projections of chat's log that queries read: each user's conversations, their members and their
// messages, and the words by which messages are found. The tables contain nothing that cannot be rebuilt from the log.
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

// MaxPageBytes is the approximate maximum size of the texts in a page of messages or conversations, in bytes. A page
// that would be larger is cut, but not before its first row, and reports that there are more rows. A page in JSON can
// be several times as large, but still fits into the queue of one connection.
const MaxPageBytes = 512 << 10

// The tables, as the migrations leave them:
//
//	conversations         one row for each conversation: kind, title, picture, history_from_joining, member_count, large;
//	                      version, position and newest_at are those of its newest event
//	conversation_members  one row for each member of a conversation: role; joined_version and joined_index are the place
//	                      in the order of joining; large and period sort a user's list of conversations (see list.go)
//	messages              one row for each message, by thread and version; a deleted message has no body
//	edits                 one row for each edit of a message that is not deleted
//	pins                  one row for each pinned message
//	reaction_counts       one row for each message that anybody has reacted to
//	reactions             one row for each reaction of each user
//	markers               one row for each user who has moved the marker in a conversation
//	mentions              one row for each user whom the newest text of a message mentions, or one for all members
//	unread_conversations  one row for each member of a small conversation who has unread messages or mentions in it
//	search_conversations  the number of each conversation with messages, for the tables search_…
//	search_blocks         one row for each 512 versions of a conversation with messages: the times of these messages
//	search_messages       one row for each message that is not deleted
//	search_words          one row for each word in a block: the messages that have had the word
//	search_spans          one row for each word in 512 blocks: the blocks that have the word

// Store reads the rows that the projections wrote. Its statements name the schema chat, because its connections do not
// set search_path. The projections' statements name no schema, because a rebuild runs them in another schema.
type Store struct{ pool *pgxpool.Pool }

// New returns a Store that reads from a pool.
func New(pool *pgxpool.Pool) *Store { return &Store{pool} }

// planned makes the server plan a statement for its arguments each time it runs. A cached plan would be reused for
// other arguments, and after the tables have grown.
const planned = pgx.QueryExecModeCacheDescribe
