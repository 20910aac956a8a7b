// Files of tokens can be dropped on Load Tokens, or chosen by its button: they go into ComfyUI's input
// folder by the page's own way of uploading.
import { app } from '../../scripts/app.js'
import { ask, widgetOf } from './page.js'
import { localised } from './words.js'

const NODE = 'MMaDAParallelLoadTokens'
const ENDING = '.tokens.safetensors' // nodes/host/folders.py

const complain = (detail) =>
  app.extensionManager.toast.add({ severity: 'error', summary: 'Load Tokens', detail, life: 8000 })

async function upload(node, file) {
  if (!file.name.endsWith(ENDING)) {
    complain(`${file.name} is not a file of Save Tokens, whose names end in ${ENDING}.`)
    return
  }
  const body = new FormData()
  body.append('image', file) // the route takes any file
  const answer = await ask('/upload/image', { method: 'POST', body })
  if (!answer?.ok) {
    const why = answer ? `${answer.status} ${answer.statusText}.` : localised('no answer from the server.')
    complain(`${file.name} could not be uploaded: ${why}`)
    return
  }
  const { name, subfolder } = await answer.json()
  const path = subfolder ? `${subfolder}/${name}` : name
  const widget = widgetOf(node, 'file')
  const listed = widget.options.values
  if (!listed.includes(path)) widget.options.values = [path, ...listed]
  widget.value = path
  widget.callback?.(path)
  node.setDirtyCanvas?.(true, true)
}

function choose(node) {
  const input = document.createElement('input')
  Object.assign(input, { type: 'file', accept: '.safetensors' })
  input.addEventListener('change', () => input.files[0] && upload(node, input.files[0]))
  input.click()
}

app.registerExtension({
  name: 'mmada_parallel.token_upload',
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return
    const button = node.addWidget('button', 'upload tokens', null, () => choose(node))
    button.serialize = button.options.serialize = false
    node.onDragOver = (event) => [...(event.dataTransfer?.items ?? [])].some((i) => i.kind === 'file')
    node.onDragDrop = (event) => {
      const file = event.dataTransfer?.files[0]
      if (!file) return false
      upload(node, file)
      return true
    }
  }
})
