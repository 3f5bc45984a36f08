package jobs

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"

	"github.com/edumatrix/interlinked/proto/refusal"
)

// Failed is a job that has failed permanently.
type Failed struct {
	ID       int64
	Kind     string
	Key      string
	Attempts int
	Error    string    // of the last attempt
	At       time.Time // when the job failed permanently
}

// ListFailed returns up to limit permanently failed jobs whose ids are greater than the parameter after, ordered by id.
// Failed jobs are kept for 90 days.
func (q *Queue) ListFailed(ctx context.Context, after int64, limit int) (all []Failed, err error) {
	page, err := q.client.JobList(ctx, river.NewJobListParams().
		States(rivertype.JobStateDiscarded, rivertype.JobStateCancelled).
		Where("id > @after", river.NamedArgs{"after": after}).
		OrderBy(river.JobListOrderByID, river.SortOrderAsc).First(limit))
	if err != nil {
		return nil, fmt.Errorf("list the failed jobs of %s: %w", q.o.Owner, err)
	}
	for _, row := range page.Jobs {
		f := Failed{ID: row.ID, Kind: row.Kind, Key: keyOf(row), Attempts: row.Attempt}
		if row.FinalizedAt != nil {
			f.At = *row.FinalizedAt
		}
		if n := len(row.Errors); n > 0 {
			f.Error = strings.TrimPrefix(row.Errors[n-1].Error, "JobCancelError: ") // River's prefix of a final error
		}
		all = append(all, f)
	}
	return all, nil
}

// Retry makes a failed job run again at once. The error is a refusal (see refusal.Of) with the code not_found or
// not_failed if there is no failed job with the id, and key_taken if another job has the job's key.
func (q *Queue) Retry(ctx context.Context, id int64) error {
	return q.resolve(ctx, id, func(tx pgx.Tx) error {
		_, err := q.client.JobRetryTx(ctx, tx, id)
		var pg *pgconn.PgError
		if errors.As(err, &pg) && pg.Code == "23505" { // unique_violation
			return refusal.New("key_taken", "another job with the key of job %d waits, runs or is done; drop the failed one", id)
		}
		return err
	})
}

// Drop deletes a failed job. The error is a refusal with the code not_found or not_failed if there is no failed job
// with the id.
func (q *Queue) Drop(ctx context.Context, id int64) error {
	return q.resolve(ctx, id, func(tx pgx.Tx) error {
		_, err := q.client.JobDeleteTx(ctx, tx, id)
		return err
	})
}

func (q *Queue) resolve(ctx context.Context, id int64, f func(pgx.Tx) error) error {
	err := pgx.BeginFunc(ctx, q.o.Pool, func(tx pgx.Tx) error {
		var state rivertype.JobState
		err := tx.QueryRow(ctx, "SELECT state::text FROM "+pgx.Identifier{q.o.Owner, "river_job"}.Sanitize()+
			" WHERE id = $1 FOR UPDATE", id).Scan(&state)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return refusal.New(refusal.NotFound, "%s has no job %d", q.o.Owner, id)
		case err != nil:
			return err
		case state != rivertype.JobStateDiscarded && state != rivertype.JobStateCancelled:
			return refusal.New("not_failed", "job %d of %s has not failed permanently: it is %s", id, q.o.Owner, state)
		}
		return f(tx)
	})
	if err != nil {
		return fmt.Errorf("job %d of %s: %w", id, q.o.Owner, err)
	}
	return nil
}
