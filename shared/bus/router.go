package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// RouterOptions configure NewRouter. A zero value stands for the default.
type RouterOptions struct {
	Service   string            // named in the dead letters
	Publisher message.Publisher // publishes the dead letters; the router does not close it
	// DeadLetterTopic receives the messages whose handling fails. Empty: such messages are logged and dropped.
	DeadLetterTopic string
	// OnDeadLetter is called before a message goes to the dead letters or is dropped. It is called again if it fails
	// (see DeadLetter), or if the message is delivered again, so it must accept repeats.
	OnDeadLetter func(ctx context.Context, m *message.Message, cause error) error
	Retries      int // maximum number of retries of a failing handler; default 3, negative: none
	// Backoff is the delay before the first retry; default 100 ms. Later delays double, up to 50 times the first one.
	Backoff time.Duration
	// Waiting is called with an error when messages begin to wait for a dependency, and with a nil error when the
	// dependency works again or no message waits for it any more.
	Waiting func(dependency string, err error)
	// CloseTimeout is how long Close waits for handlers in flight; default 30 s.
	CloseTimeout time.Duration
	Tracer       trace.Tracer
	Log          *slog.Logger

	outages *outages
}

func (o *RouterOptions) setDefaults() {
	if o.OnDeadLetter == nil {
		o.OnDeadLetter = func(context.Context, *message.Message, error) error { return nil }
	}
	if o.Waiting == nil {
		o.Waiting = func(string, error) {}
	}
	if o.Retries == 0 {
		o.Retries = 3
	}
	if o.Backoff == 0 {
		o.Backoff = firstPause
	}
	if o.CloseTimeout == 0 {
		o.CloseTimeout = 30 * time.Second
	}
	if o.Tracer == nil {
		o.Tracer = noop.NewTracerProvider().Tracer("")
	}
	o.Log = logger(o.Log)
	if o.outages == nil {
		o.outages = &outages{byName: map[string]*outage{}, waiting: o.Waiting, log: o.Log}
	}
}

// NewRouter returns a Watermill router with the mesh's middleware. From the outside to the handler, these are tracing,
// correlation, dead letters, retries, and recovery from panics. In any other order of the last three, dead letters
// would be lost, or messages would be retried without end. Tracing is outside, so that a trace shows the retries and
// the dead letter.
func NewRouter(o RouterOptions) (*message.Router, error) {
	o.setDefaults()
	if o.DeadLetterTopic != "" && o.Publisher == nil {
		return nil, fmt.Errorf("router of %s: dead letters have no publisher", o.Service)
	}
	// The lines that Watermill logs at the level Info are useful only for debugging.
	log := watermill.NewSlogLoggerWithLevelMapping(o.Log, map[slog.Level]slog.Level{slog.LevelInfo: slog.LevelDebug})
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: o.CloseTimeout}, routerLog{log})
	if err != nil {
		return nil, fmt.Errorf("router of %s: %w", o.Service, err)
	}
	router.AddMiddleware(Tracing(o.Tracer), Correlation, DeadLetter(o), Retry(o), Recover)
	return router, nil
}

// RunRouter runs a router until the channel stop is closed or ctx ends. Then the router consumes nothing more, and
// RunRouter returns when the handlers have finished their messages. It returns an error if they have not finished
// within CloseTimeout, or if a handler cannot be started.
//
// Use RunRouter instead of the router's methods Run and Close: if Close is called before Run has started all handlers,
// Close waits for handlers that were never started, until CloseTimeout is over.
func RunRouter(ctx context.Context, stop <-chan struct{}, router *message.Router) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- router.Run(ctx) }()
	select {
	case <-router.Running():
	case err := <-ended:
		if ctx.Err() != nil {
			return nil // the subscribers have ended with ctx
		}
		return err
	case <-stop:
		cancel() // a subscriber may be waiting for the broker
		select {
		case <-router.Running():
		case <-ended:
			return nil
		}
	}
	select {
	case <-stop:
	case <-ctx.Done():
	case err := <-ended:
		return err
	}
	return errors.Join(router.Close(), <-ended)
}

// routerLog is the logger of a Watermill router. If a handler had no time to finish, routerLog logs its error
// at debug level, because the handler's message is delivered again.
type routerLog struct{ watermill.LoggerAdapter }

func (l routerLog) Error(text string, err error, fields watermill.LogFields) {
	if errors.Is(err, errStopping) {
		l.LoggerAdapter.Debug(text, fields.Add(watermill.LogFields{"error": err.Error()}))
		return
	}
	l.LoggerAdapter.Error(text, err, fields)
}

func (l routerLog) With(fields watermill.LogFields) watermill.LoggerAdapter {
	return routerLog{l.LoggerAdapter.With(fields)}
}
