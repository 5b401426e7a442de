"""What a person does with `huggingface_hub`, from an empty model to a closed pull request; any version of the client runs it.

Run as a program with HF_ENDPOINT, HF_TOKEN and HF_HOME set: `client_story.py OWNER FOLDER`.
"""

from __future__ import annotations

import filecmp
import os
import sys
from pathlib import Path

import huggingface_hub as hub
from huggingface_hub.utils import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError


def story(owner: str, folder: Path) -> None:
    """The whole of it; `folder` holds a model."""
    api = hub.HfApi()
    model = f"{owner}/story-{os.urandom(4).hex()}"
    assert api.whoami()["name"] == owner

    # An empty model
    assert not api.repo_exists(model)
    assert str(api.create_repo(model)).endswith(model)
    assert refused(HfHubHTTPError, lambda: api.create_repo(model)).response.status_code == 409
    assert str(api.create_repo(model, exist_ok=True)).endswith(model)
    assert api.repo_exists(model)
    assert api.model_info(model).sha is None
    assert list(api.list_repo_tree(model)) == []

    # Uploaded, and the same bytes come back
    first = api.upload_folder(repo_id=model, folder_path=str(folder), commit_message="first")
    again = api.upload_folder(repo_id=model, folder_path=str(folder), commit_message="nothing new")
    info = api.model_info(model, files_metadata=True)
    assert len(api.list_repo_commits(model)) == 1
    assert (oid(first), oid(again)) in [(info.sha, info.sha), (None, None)]
    sent = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    left_out = {"training_args.bin"}
    assert {s.rfilename for s in info.siblings} == set(sent) - left_out
    assert {s.rfilename: s.size for s in info.siblings} == {p: sent[p].stat().st_size for p in set(sent) - left_out}
    got = Path(api.snapshot_download(model))
    for path in set(sent) - left_out:
        assert filecmp.cmp(sent[path], got / path, shallow=False), path
    assert Path(api.hf_hub_download(model, "config.json")).read_bytes() == sent["config.json"].read_bytes()

    # Looked at
    tree = {item.path: item for item in api.list_repo_tree(model, recursive=True, expand=True)}
    assert tree["sub/deep/note.txt"].last_commit.title == "first"
    assert tree["model.safetensors"].lfs.size == sent["model.safetensors"].stat().st_size
    assert tree["sub/deep/note.txt"].lfs is None
    assert [item.path for item in api.list_repo_tree(model, "sub")] == ["sub/deep"]
    assert [item.path for item in api.get_paths_info(model, ["config.json", "sub", "none"])] == ["config.json", "sub"]
    counts = api.get_safetensors_metadata(model).parameter_count
    assert counts == {"F32": info.safetensors.total}
    assert info.safetensors.total > 0
    assert info.card_data["license"] == "mit"
    assert [m.id for m in api.list_models(author=owner, search=model.split("/")[1])] == [model]

    # What is not there
    refused(EntryNotFoundError, lambda: api.hf_hub_download(model, "none.json"))
    refused(RevisionNotFoundError, lambda: api.hf_hub_download(model, "config.json", revision="none"))
    refused(RepositoryNotFoundError, lambda: api.hf_hub_download(f"{owner}/none", "config.json"))
    assert not api.file_exists(model, "none.json")
    assert api.file_exists(model, "config.json")

    # Branches and tags
    api.create_branch(model, branch="runs/a")
    api.create_branch(model, branch="runs/a", exist_ok=True)
    refused(HfHubHTTPError, lambda: api.create_branch(model, branch="runs/a"))
    api.create_tag(model, tag="v1", tag_message="good")
    assert api.revision_exists(model, "v1")
    assert not api.revision_exists(model, "v2")
    api.upload_file(repo_id=model, path_or_fileobj=b"hi", path_in_repo="x/y.txt", revision="runs/a")
    assert Path(api.hf_hub_download(model, "x/y.txt", revision="runs/a")).read_bytes() == b"hi"
    assert not api.file_exists(model, "x/y.txt")
    refs = api.list_repo_refs(model)
    assert [b.name for b in refs.branches] == ["main", "runs/a"]
    assert [(t.name, t.target_commit) for t in refs.tags] == [("v1", info.sha)]
    api.delete_file("x/y.txt", model, revision="runs/a")
    api.delete_folder("sub", model, revision="runs/a")
    left = {s.rfilename for s in api.model_info(model, revision="runs/a").siblings}
    assert left == {path for path in set(sent) - left_out if not path.startswith("sub/")}
    refused(EntryNotFoundError, lambda: api.delete_file("x/y.txt", model, revision="runs/a"))
    api.delete_branch(model, branch="runs/a")
    assert [b.name for b in api.list_repo_refs(model).branches] == ["main"]
    refused(HfHubHTTPError, lambda: api.delete_branch(model, branch="main"))

    # Commits of their own
    copies = [
        hub.CommitOperationCopy("model.safetensors", "again.safetensors"),
        hub.CommitOperationCopy("config.json", "c"),
    ]
    api.create_commit(model, copies, commit_message="copies")
    copied = api.hf_hub_download(model, "again.safetensors")
    assert filecmp.cmp(sent["model.safetensors"], copied, shallow=False)
    late = [hub.CommitOperationAdd("late.txt", b"1")]
    stale = refused(HfHubHTTPError, lambda: api.create_commit(model, late, commit_message="l", parent_commit=info.sha))
    assert stale.response.status_code == 412
    pickled = refused(
        HfHubHTTPError, lambda: api.upload_file(repo_id=model, path_or_fileobj=b"x", path_in_repo="pytorch_model.bin")
    )
    assert pickled.response.status_code == 422
    assert "safetensors" in str(pickled)
    refused(
        ValueError, lambda: api.upload_file(repo_id=model, path_or_fileobj=b"---\n[\n---\n", path_in_repo="README.md")
    )

    # A pull request is a contribution
    change = [hub.CommitOperationAdd("better.txt", b"better")]
    pull = api.create_commit(model, change, commit_message="Better", commit_description="by far", create_pr=True)
    assert pull.pr_num == 1
    assert pull.pr_revision == "refs/pr/1"
    (listed,) = api.get_repo_discussions(model)
    assert (listed.num, listed.title, listed.author, listed.is_pull_request) == (1, "Better", owner, True)
    assert api.comment_discussion(model, 1, comment="I agree").content == "I agree"
    details = api.get_discussion_details(model, 1)
    assert details.target_branch == "refs/heads/main"
    assert [event.content for event in details.events if event.type == "comment"] == ["by far", "I agree"]
    assert api.change_discussion_status(model, 1, new_status="closed").new_status == "closed"
    assert api.get_discussion_details(model, 1).status == "closed"
    assert not api.file_exists(model, "better.txt")
    whole = api.upload_folder(repo_id=model, folder_path=str(folder), path_in_repo="all", create_pr=True)
    assert getattr(whole, "pr_num", 2) == 2  # the old client gives an address
    assert [(d.num, d.status) for d in api.get_repo_discussions(model)] == [(2, "draft"), (1, "closed")]
    assert not api.file_exists(model, "all/config.json")

    # Private, then gone
    api.update_repo_settings(model, private=True)
    refused(RepositoryNotFoundError, lambda: hub.HfApi(token=False).model_info(model))
    assert api.model_info(model).private
    api.delete_tag(model, tag="v1")
    api.delete_repo(model)
    assert not api.repo_exists(model)
    api.delete_repo(model, missing_ok=True)


def refused(kind, call):
    """The error of a call that must fail."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"not refused: {kind}")


def oid(said) -> str | None:
    """The commit that an upload made, where the client says so."""
    return getattr(said, "oid", None)


if __name__ == "__main__":
    story(sys.argv[1], Path(sys.argv[2]))
    print("told", hub.__version__)
