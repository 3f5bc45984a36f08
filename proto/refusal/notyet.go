package refusal

import "errors"

// NotYetError reports that a command cannot be decided until a fact arrives that may be late, such as an event of
// another service. It is not an outcome: the command is decided again for a while and then refused as unavailable, so
// that it may be sent again.
type NotYetError struct {
	Text string // describes the missing fact, for people
}

func (e *NotYetError) Error() string { return "not decided yet: " + e.Text }

// IsNotYet returns the NotYetError in an error, and whether there is one.
func IsNotYet(err error) (*NotYetError, bool) {
	var n *NotYetError
	ok := errors.As(err, &n)
	return n, ok
}
