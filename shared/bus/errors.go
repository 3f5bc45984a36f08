package bus

import (
	"errors"
	"fmt"

	"github.com/edumatrix/interlinked/shared/retry"
)

// errStopping is wrapped by errors of handlers that had no time to finish. The messages of these handlers are delivered
// again, to this process or, if their partition is reassigned, to another one.
var errStopping = errors.New("stopping")

func stopping(err error) error {
	return fmt.Errorf("%w, the message will be delivered again: %w", errStopping, err)
}

// isMessageBlameless reports whether an error is not the fault of the message.
func isMessageBlameless(err error) bool {
	return errors.Is(err, retry.ErrUnavailable) || errors.Is(err, errStopping)
}
