package quota

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/edumatrix/interlinked/shared/retry"
)

const (
	// maxAskWait is how long a query may wait for its user's other queries.
	maxAskWait = 10 * time.Second
	// answerCost is the number of bytes of an answer that cost as much as one query.
	answerCost = 4 << 10
)

// ErrAsksTooMuch is returned for a query that waited too long for the other queries of its user.
var ErrAsksTooMuch = errors.New("too many queries of one user in a short time")

// Ask waits until an owner may be asked on behalf of the user. Call the function done with the size of the answer, in
// bytes, when it has arrived.
//
// Owners serve all users from one pool of database connections, so each user has only a few queries there at a time.
// The user's other queries wait here. After large answers the user's next query waits for a moment, because reading and
// encoding them takes CPU time that other users need.
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

// answered takes the tokens of a query or of its answer, and returns how long to wait until they are available.
func (u *User) answered(cost int) time.Duration {
	u.mu.Lock()
	defer u.mu.Unlock()
	wait, _ := u.answers.Reserve(time.Now(), cost, math.MaxInt64)
	return wait
}
