package embedded

import (
	"errors"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/edumatrix/interlinked/shared/backend"
)

// storage checks whether the broker can store records. A broker with a full disk refuses records but still answers
// requests that store nothing, such as those of health checks, so a check has to write something itself.
type storage struct {
	path string // the file that the method check writes; the file has no other use
	log  *slog.Logger

	mu  sync.Mutex
	at  time.Time
	err error
}

const (
	storageEvery = 500 * time.Millisecond
	storageProbe = 64 << 10 // bytes, about the size of a batch of records
)

// check writes a file, at most twice a second, and returns the result of the last write.
func (s *storage) check() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.at) < storageEvery {
		return s.err
	}
	before := s.err
	// The file is created again each time: an existing file would keep its space even on a full disk.
	s.err = errors.Join(os.WriteFile(s.path, make([]byte, storageProbe), 0o600), os.Remove(s.path))
	s.at = time.Now()
	switch {
	case before == nil && s.err != nil:
		s.log.Error("the embedded Kafka cannot write to its data directory: it accepts no records", "error", s.err)
	case before != nil && s.err == nil:
		s.log.Info("the embedded Kafka can write to its data directory again")
	}
	return s.err
}

// answerChecks makes the broker answer a check (backend.Kafka.Check) with an error while the broker cannot store
// records. Clients are not affected: they send the same request when they connect, but under another name.
func (s *storage) answerChecks(c *kfake.Cluster) {
	c.ControlKey(int16(kmsg.ApiVersions), func(r kmsg.Request) (kmsg.Response, error, bool) {
		asked := r.(*kmsg.ApiVersionsRequest)
		if asked.ClientSoftwareName != backend.CheckName || s.check() == nil {
			return nil, nil, false
		}
		c.KeepControl()
		answer := asked.ResponseKind().(*kmsg.ApiVersionsResponse)
		answer.ErrorCode = kerr.KafkaStorageError.Code
		return answer, nil, true
	})
}
