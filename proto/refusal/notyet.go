package refusal

import "errors"

// NotYetError means that a command cannot be decided yet, because a fact is missing that may arrive late, such as an
// event of another service. It is not an outcome. The owner tries to decide the command again for two seconds. Then it
// refuses a client's command as Unavailable, so that the client can send it again. If the command is an effect of
// another owner's event, the owner parks that event instead.
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
