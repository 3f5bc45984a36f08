package bus

import (
	"errors"
	"fmt"

	"github.com/edumatrix/interlinked/shared/retry"
)

// errStopping is wrapped by errors of handlers that had no time to finish. Their messages come again, here or wherever
// their partition is assigned.
var errStopping = errors.New("stopping")

func stopping(err error) error {
	return fmt.Errorf("%w, the message will come again: %w", errStopping, err)
}

// isMessageBlameless reports whether the message is not at fault.
func isMessageBlameless(err error) bool {
	return errors.Is(err, retry.ErrUnavailable) || errors.Is(err, errStopping)
}
