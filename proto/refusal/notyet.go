package refusal

import "errors"

// NotYetError says that a command cannot be decided until a fact arrives that may be late, such as an event of another
// service. It is not an outcome: the command is decided again for a while, and then answered as unavailable, so that
// the same command may be sent again.
type NotYetError struct {
	Text string // what is not known yet, for people
}

func (e *NotYetError) Error() string { return "not decided yet: " + e.Text }

// IsNotYet finds a NotYetError in an error.
func IsNotYet(err error) (*NotYetError, bool) {
	var n *NotYetError
	ok := errors.As(err, &n)
	return n, ok
}
