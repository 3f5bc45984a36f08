// Package edumatrix implements the program edumatrix. `edumatrix up` runs all five services in one process, with
// an embedded store in place of each store whose address is not set. The other subcommands are for users and operators
// of a running mesh. They read the mesh's addresses and secrets from flags, the environment or its data directory.
package edumatrix

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"

	"github.com/edumatrix/interlinked/shared/process"
)

// Terminal holds the input, output and environment of a subcommand.
type Terminal struct {
	In     io.Reader
	Out    io.Writer
	Err    io.Writer
	Getenv func(string) string
}

type subcommand struct {
	name  string
	says  string // one line for the usage
	run   func(ctx context.Context, t Terminal, args []string) error
	usage string
}

func subcommands() []subcommand {
	return []subcommand{
		{"up", "run the whole mesh in this process, with embedded stores unless others are set", up, ""},
		{"token", "mint a development token for a user", token, "--user NAME"},
		{"chat", "talk in this terminal", talk, "--user NAME (--to USER | --conversation ID)"},
		{"verify", "check every connection, one by one", verify, ""},
		{"health", "print /health of a running process (exit status 1 when unhealthy)", askHealth, "[--url URL]"},
		{"log", "show the events of a stream, from its owner's log", showLog, "show STREAM [--owner SERVICE] [--json]"},
		{"events", "follow event topics", tailEvents, "tail [TOPIC...] [--from-start] [--all] [--json]"},
		{"dead-letters", "list, show, retry or drop the messages that services could not process", deadLetters,
			"(list [--all] | show ID | retry ID | drop ID) [--service SERVICE] [--json]"},
		{"rebuild", "rebuild projections from the log while the service runs (exit status 3 when rows differed)", rebuild,
			"SERVICE [PROJECTION]"},
		{"restored", "begin a new history of a log, after its database was restored to an earlier state", restored,
			"SERVICE [--seen POSITION]"},
		{"replay", "send a part of a log to one consumer again", replay,
			"--owner SERVICE [--topic T] [--stream S] [--since T] [--until T] --to SERVICE"},
	}
}

// statusError is an error with an exit status of its own.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string { return e.err.Error() }

func (e *statusError) Unwrap() error { return e.err }

// errUsage is the error for wrong arguments. The subcommand has already printed what is wrong.
var errUsage = errors.New("usage")

// Main runs one subcommand and returns the exit status: 0 for success, 1 for a failure, 2 for wrong usage, or the
// status in a statusError. On SIGINT, SIGTERM or SIGHUP, the context of the subcommand ends, so that it can clean up; a
// second signal ends the process at once. SIGHUP has no effect if the process was started with nohup.
func Main(args []string, t Terminal) int {
	ctx, release := process.UntilSignal(context.Background(), process.NewLog(t.Err))
	defer release()

	if len(args) > 0 {
		for _, s := range subcommands() {
			if s.name != args[0] {
				continue
			}
			err := s.run(ctx, t, args[1:])
			var own *statusError
			switch {
			case err == nil:
				return 0
			case errors.Is(err, flag.ErrHelp):
				return 0
			case errors.Is(err, errUsage):
				return 2
			default:
				process.Fail(t.Err, "edumatrix "+s.name, err)
				if errors.As(err, &own) {
					return own.status
				}
				return 1
			}
		}
	}
	known := len(args) == 1 && (args[0] == "help" || args[0] == "-h" || args[0] == "--help")
	out := t.Err
	if known {
		out = t.Out
	} else if len(args) > 0 {
		fmt.Fprintf(t.Err, "edumatrix: there is no subcommand %q\n", args[0])
	}
	fmt.Fprintln(out, "usage: edumatrix SUBCOMMAND [flags]")
	for _, s := range subcommands() {
		fmt.Fprintf(out, "  %-13s %s\n", s.name, s.says)
		if s.usage != "" {
			fmt.Fprintf(out, "                edumatrix %s %s\n", s.name, s.usage)
		}
	}
	if known {
		return 0
	}
	return 2
}

// flags returns the flag set of a subcommand, which prints its errors to the terminal.
func flags(name string, t Terminal) *flag.FlagSet {
	f := flag.NewFlagSet("edumatrix "+name, flag.ContinueOnError)
	f.SetOutput(t.Err)
	return f
}

// parse parses the flags. Arguments that are not flags are an error.
func parse(f *flag.FlagSet, args []string) error {
	if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
		return err
	} else if err != nil {
		return errUsage
	}
	if f.NArg() > 0 {
		fmt.Fprintf(f.Output(), "%s does not take the argument %q\n", f.Name(), f.Arg(0))
		return errUsage
	}
	return nil
}
