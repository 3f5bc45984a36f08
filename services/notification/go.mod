module github.com/edumatrix/interlinked/services/notification

go 1.26.0
