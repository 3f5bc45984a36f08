package bus

import (
	"errors"
	"fmt"
)

// ErrAway is wrapped by errors that say: a dependency is away, the message is not to blame. A router's handler is then
// called again for as long as it takes, and nothing is dead-lettered.
var ErrAway = errors.New("a dependency is away")

// Away says that err came from a dependency that is away. The name is that of the health check, such as "postgres".
func Away(dependency string, err error) error { return &awayError{dependency, err} }

type awayError struct {
	dependency string
	err        error
}

func (e *awayError) Error() string { return e.dependency + " is away: " + e.err.Error() }

func (e *awayError) Unwrap() []error { return []error{ErrAway, e.err} }

// dependencyOf names what is away.
func dependencyOf(err error) string {
	var away *awayError
	if errors.As(err, &away) {
		return away.dependency
	}
	return "dependency"
}

// Permanent says that no retry helps: the message goes to the dead letters at once.
func Permanent(err error) error { return &permanentError{err} }

type permanentError struct{ err error }

func (e *permanentError) Error() string { return e.err.Error() }

func (e *permanentError) Unwrap() error { return e.err }

func isPermanent(err error) bool {
	var permanent *permanentError
	return errors.As(err, &permanent)
}

// errStopping is wrapped by errors of handlers that were not given the time to end: their messages come again, here or
// wherever their partition goes.
var errStopping = errors.New("stopping")

func stopping(err error) error {
	return fmt.Errorf("%w, the message will come again: %w", errStopping, err)
}

// blameless says that the message is not at fault.
func blameless(err error) bool { return errors.Is(err, ErrAway) || errors.Is(err, errStopping) }
