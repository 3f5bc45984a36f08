package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"regexp"
	"runtime/debug"
	"strings"
	"time"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
)

// Work is the implementation of a kind of jobs.
type Work[T Args] struct {
	// Do runs one attempt of a job. If Do returns an error, the job is tried again after about 1, 16, 81, 256 …
	// seconds; an error that Final has marked ends the job. The context ends after Timeout. It also ends when
	// Options.Grace has passed since Run was stopped.
	Do func(ctx context.Context, job Attempt[T]) error
	// Timeout bounds an attempt; 0: 30 s.
	Timeout time.Duration
	// Attempts is the number of attempts after which a job has failed permanently; 0: 10, within about four hours.
	Attempts int
}

// Attempt is one attempt of a job.
type Attempt[T Args] struct {
	Args   T
	ID     int64
	Key    string
	Number int // of the attempt, from 1 on
}

// Workers holds the implementations of several kinds of jobs. The zero value is empty.
type Workers struct{ kinds map[string]kind }

type kind struct {
	timeout  time.Duration
	attempts int
	add      func(*river.Workers, *slog.Logger) error
}

// Empty reports whether there are no workers.
func (w *Workers) Empty() bool { return w == nil || len(w.kinds) == 0 }

// Add registers the implementation of a kind. It panics if the kind already has an implementation, or if work.Do is
// nil.
func Add[T Args](w *Workers, work Work[T]) {
	var args T
	name := args.Kind()
	if _, ok := w.kinds[name]; ok || work.Do == nil {
		panic(fmt.Sprintf("jobs: the kind %q has a worker already, or Do is nil", name))
	}
	if work.Timeout <= 0 {
		work.Timeout = 30 * time.Second
	}
	if work.Attempts <= 0 {
		work.Attempts = 10
	}
	if w.kinds == nil {
		w.kinds = map[string]kind{}
	}
	w.kinds[name] = kind{timeout: work.Timeout, attempts: work.Attempts, add: func(all *river.Workers, log *slog.Logger) error {
		return river.AddWorkerSafely(all, &worker[T]{work: work, log: log})
	}}
}

// Final marks an error that another attempt cannot fix. The job then fails permanently.
func Final(err error) error { return &finalError{err} }

type finalError struct{ err error }

func (e *finalError) Error() string { return e.err.Error() }
func (e *finalError) Unwrap() error { return e.err }

// kept is the stored form of a job's arguments, with their type.
type kept[T Args] struct {
	Key  string `json:"key"`
	Args T      `json:"args"`
}

func (k kept[T]) Kind() string { return k.Args.Kind() }

type worker[T Args] struct {
	river.WorkerDefaults[kept[T]]
	work Work[T]
	log  *slog.Logger
}

func (w *worker[T]) Timeout(*river.Job[kept[T]]) time.Duration { return w.work.Timeout }

// Work runs an attempt of a job. The error of the attempt is stored with the job and logged, so secrets are removed
// from its text.
func (w *worker[T]) Work(ctx context.Context, j *river.Job[kept[T]]) error {
	err := w.attempt(ctx, j)
	if err == nil {
		return nil
	}
	logged := w.log.With("kind", j.Kind, "id", j.ID, "attempt", j.Attempt, "error", clean(err.Error()))
	var final *finalError
	switch {
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		logged.InfoContext(ctx, "a job was interrupted and will run again")
	case errors.As(err, &final):
		logged.ErrorContext(ctx, "a job has failed permanently")
		return river.JobCancel(&cleanError{err})
	case j.Attempt >= j.MaxAttempts:
		logged.ErrorContext(ctx, "a job has failed permanently")
	default:
		logged.WarnContext(ctx, "a job has failed and will be tried again")
	}
	return &cleanError{err}
}

// attempt calls Do, and turns a panic into an error.
func (w *worker[T]) attempt(ctx context.Context, j *river.Job[kept[T]]) (err error) {
	defer func() {
		if p := recover(); p != nil {
			// The stack contains the names of functions and no texts, so it contains no secrets.
			w.log.ErrorContext(ctx, "a worker panicked", "kind", j.Kind, "id", j.ID, "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return w.work.Do(ctx, Attempt[T]{Args: j.Args.Args, ID: j.ID, Key: j.Args.Key, Number: j.Attempt})
}

// cleanError is an error whose text is the result of clean.
type cleanError struct{ err error }

func (e *cleanError) Error() string { return clean(e.err.Error()) }
func (e *cleanError) Unwrap() error { return e.err }

// maxText is the maximum size of a stored error, in bytes.
const maxText = 1000

var (
	addresses   = regexp.MustCompile(`[a-zA-Z][a-zA-Z0-9+.-]*://[^\s"'<>]+`)
	credentials = regexp.MustCompile(`(?i)\b(bearer|basic|vapid)\s+[^\s"']+`)
)

// clean removes secrets that the errors of HTTP clients often contain. It shortens each URL to its scheme and host,
// because the path of a push endpoint or a signed link is a secret. It removes the credentials of an Authorization
// header. It also removes NUL characters and invalid UTF-8, which Postgres cannot store, and cuts the text off after
// maxText bytes.
func clean(text string) string {
	text = addresses.ReplaceAllStringFunc(text, func(address string) string {
		u, err := url.Parse(address)
		if err != nil || u.Host == "" {
			return "[address]"
		}
		return u.Scheme + "://" + u.Host
	})
	text = credentials.ReplaceAllString(text, "$1 [credential]")
	text = strings.ToValidUTF8(strings.ReplaceAll(text, "\x00", ""), "")
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "…"
	}
	return text
}

// keyOf returns the key of a stored job, or an empty text.
func keyOf(row *rivertype.JobRow) string {
	var s stored
	_ = json.Unmarshal(row.EncodedArgs, &s) // a job of another program has no key
	return s.Key
}
