package quota

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/edumatrix/interlinked/shared/retry"
)

const (
	// maxAskWait is how long a query may wait because of other queries of its user.
	maxAskWait = 10 * time.Second
	// answerCost is the number of bytes of an answer that cost as much as one query.
	answerCost = 4 << 10
)

// ErrAsksTooMuch is returned for a query that has waited maxAskWait because of other queries of its user.
var ErrAsksTooMuch = errors.New("too many queries of one user in a short time")

// Ask waits until one more query of the user may be sent to an owner. Call the function done when the query has ended,
// with the size of its answer in bytes, or with 0 if it has failed. The error is ErrAsksTooMuch or the cause of the end
// of ctx.
//
// An owner serves all users from one pool of database connections. Therefore at most Limits.Asked queries of a user are
// sent to owners at a time, and the user's other queries wait in Ask. After large answers the user's next query waits
// for a moment, because reading and encoding large answers takes CPU time that other users need.
func (u *User) Ask(ctx context.Context) (done func(bytes int), err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, maxAskWait, ErrAsksTooMuch)
	defer cancel()
	select {
	case u.asks <- struct{}{}:
	default:
		select {
		case u.asks <- struct{}{}:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	if wait := u.answered(1); wait > 0 && !retry.Sleep(ctx, wait) {
		<-u.asks
		return nil, context.Cause(ctx)
	}
	return func(bytes int) {
		u.answered(min(bytes/answerCost, u.limits.Answers)) // an answer costs at most the tokens that are added in one second
		<-u.asks
	}, nil
}

// answered takes the tokens of a query or of its answer from the bucket u.answers, and returns how long to wait until
// they are available.
func (u *User) answered(cost int) time.Duration {
	u.mu.Lock()
	defer u.mu.Unlock()
	wait, _ := u.answers.Reserve(time.Now(), cost, math.MaxInt64)
	return wait
}
